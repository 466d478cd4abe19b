"""`sf rehearse [SCALE]`: a study's resources and faults, before anything runs."""

from workflow.rehearsal.rehearse import Options, Rehearsal, as_json, rehearse, shown

__all__ = ["Options", "Rehearsal", "as_json", "rehearse", "shown"]
