"""The daemon: watches, decides, restarts. Imports no tensorflow, h5py or numpy."""
