"""What has to be done for a job before and after its program runs: stage in, preprocess, postprocess, stage out.

A job that needs none of it passes from CREATED to RUNNING, and from RUN_DONE to JOB_FINISHED, in the transaction that
claims or ends it (`db.store.claims`). The others must not run as if they needed nothing.
"""

from __future__ import annotations

from ..db.store.claims import Claim


def needed(claim: Claim) -> list[str]:
    """The steps that this job asks for, in words.

    >>> from types import SimpleNamespace
    >>> fields = dict(stage_in_url="/data/x", stage_out_url="", stage_out_files="", preprocess="", postprocess="check.sh")
    >>> needed(SimpleNamespace(**fields))
    ['stage-in from /data/x', 'the postprocess script check.sh']
    """
    steps = []
    if claim.stage_in_url:
        steps.append(f"stage-in from {claim.stage_in_url}")
    if claim.preprocess:
        steps.append(f"the preprocess script {claim.preprocess}")
    if claim.postprocess:
        steps.append(f"the postprocess script {claim.postprocess}")
    if claim.stage_out_url and claim.stage_out_files:
        steps.append(f"stage-out to {claim.stage_out_url}")
    return steps
