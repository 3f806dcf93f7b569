"""The worker's side: runs the script, instruments Keras, saves and resumes. Never imported by the daemon."""
