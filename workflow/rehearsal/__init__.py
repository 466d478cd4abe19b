"""`sf rehearse [SCALE]`: what a study needs and what in it will not work, before anything runs."""

from workflow.rehearsal.rehearse import Options, Rehearsal, as_json, rehearse, shown

__all__ = ["Options", "Rehearsal", "as_json", "rehearse", "shown"]
