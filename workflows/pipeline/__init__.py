"""The Kubeflow pipeline: what it is, how its pods run, how it is compiled and submitted. Needs kfp."""
