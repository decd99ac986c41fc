"""The replicated state as SQL tables: decisions of core/state are carried out here, and read.

`execute.Executor` is what `StateStore.apply` calls, `schema.MIGRATIONS` makes its tables,
`reading.StateView` reads them and follows their events.
"""
