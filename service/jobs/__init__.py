"""Training as a job: queued in RQ, watched and cancelled through Redis, run by a worker of its own process.

    record    what is known of a job, in Redis, for whoever asks
    queue     the line: submit, look, cancel, follow
    training  the job itself: corpus -> fit -> judge -> promote; no Redis
    run       what RQ calls: wires the one to the other
    worker    RQ's worker, with the rules that a training needs; `python -m service.jobs`

The line and its worker import no torch: the worker forks for each job, and only the fork loads it.
"""
