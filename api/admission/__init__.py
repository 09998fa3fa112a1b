"""Admission: what cannot be served soon is refused before it is accepted, and told when to come again."""

from api.admission.admission import Admission

__all__ = ["Admission"]
