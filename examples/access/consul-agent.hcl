# What Lictor needs of Consul, as printed by
# lictor policy consul --registration=agent --cluster-name=demo --service=web,user_service

# Lictor asks the agent for its name, and what it holds.
agent_prefix "" {
  policy = "read"
}

# Lictor reads all, so that a list which ACLs have cut short is never taken for the whole.
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
