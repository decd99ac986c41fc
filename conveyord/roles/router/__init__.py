"""The control plane: whoever leads keeps the cluster's members as they should be."""

from conveyord.roles.router.service import RouterService

__all__ = ["RouterService"]
