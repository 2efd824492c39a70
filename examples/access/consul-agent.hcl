# What Lictor needs of Consul, as printed by
# lictor policy consul --registration=agent --cluster-name=demo --service=web,user_service

# Lictor asks the agent for its name and its services.
agent_prefix "" {
  policy = "read"
}

# Lictor reads all nodes and services, so that it never takes a list that ACLs have filtered for the complete one.
node_prefix "" {
  policy = "read"
}
service_prefix "" {
  policy = "read"
}

# The services that resources may register.
service "web" {
  policy = "write"
}
service "user_service" {
  policy = "write"
}
