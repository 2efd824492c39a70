# What Lictor's token needs of Consul with --registration=agent, the default.
#
# It reads everything of its agent's node, so that a list which ACLs have cut short is never taken for the
# whole; it writes the services that resources name. One entry per service, or one prefix.
agent_prefix "" {
  policy = "read"
}
node_prefix "" {
  policy = "read"
}
service_prefix "" {
  policy = "read"
}
service "user_service" {
  policy = "write"
}
service "web" {
  policy = "write"
}
