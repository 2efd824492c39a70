# What Lictor needs of Consul, as printed by
# lictor policy consul --registration=catalog --cluster-name=demo --service=web,user_service

# Lictor reads all, so that a list which ACLs have cut short is never taken for the whole.
node_prefix "" {
  policy = "read"
}
service_prefix "" {
  policy = "read"
}

# Lictor makes a Consul node for each Kubernetes node.
node_prefix "demo-" {
  policy = "write"
}

# Lictor marks the cluster by a node, which also keeps a replica from writing that does not lead any more.
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
