"""Tests of deploy/kubernetes: the manifests, and the services in a cluster."""
