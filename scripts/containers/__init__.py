"""What containers are made with: third-party notices, and the manifests of Kubernetes."""
