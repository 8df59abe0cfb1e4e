"""Training as a background job: submitted to RQ, followed and cancelled through Redis, run by a worker process.

    record            the dataclasses of a job and its record in Redis
    request           validation of a training request
    queue             submit, get, list, cancel, follow
    worker            RQ's worker process; `python -m service.jobs`
    tasks             the function that RQ calls: connects a training to its record and its cancellation
    training          the training itself: corpus, fit, decide, promote; no Redis
    promotion_policy  whether a new checkpoint replaces the promoted one
    bootstrap         whether a first model must be trained, and the job that trains it

Queue and worker import no torch: the worker forks for each job, and only the fork loads it. Not here: how a model
learns (model/training) and what a terminal shows of a job (service/operations/console).
"""
