"""The program behind the accuracy record: jobs, workers, and what each job trains and scores."""
