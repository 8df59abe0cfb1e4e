"""Many texts on one stepper: sequence, scheduler and stream hold no tensor; engine is the one thread that runs."""
