"""Certification: many simulated runs of a strategy, the smallest failure, and the certificate.

from trikv.testing.certify import certify, read_schedule
assert certify("mymode", seeds=range(1, 201)).is_kept
assert certify("mymode", schedule=read_schedule("what_i_did.json")).is_kept
"""

from trikv.testing.certify.certificate import Certificate, certify
from trikv.testing.sim.schedulefile import SavedSchedule, ScheduleFileError, read_schedule, write_schedule

__all__ = ["Certificate", "SavedSchedule", "ScheduleFileError", "certify", "read_schedule", "write_schedule"]
