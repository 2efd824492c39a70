# What Lictor needs of Consul, as printed by
# lictor policy consul --registration=catalog --cluster-name=demo --service=web,user_service

# Lictor reads all nodes and services, so that it never takes a list that ACLs have filtered for the complete one.
node_prefix "" {
  policy = "read"
}
service_prefix "" {
  policy = "read"
}

# Lictor creates a Consul node for each Kubernetes node.
node_prefix "demo-" {
  policy = "write"
}

# The marker node of the cluster. It also keeps a former leader from writing.
node "lictor-demo" {
  policy = "write"
}

# The services that resources may register.
service "web" {
  policy = "write"
}
service "user_service" {
  policy = "write"
}
