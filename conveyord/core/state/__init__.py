"""What the cluster has agreed on beside its log: commands that ask for a change, and what each of them does.

Pure: (view, command) → rows, events and a reply. `machine.MACHINE` knows every command; `codec` turns them into the
data of entries and back. conveyord/storage/state carries decisions out as SQL.
"""
