# What Lictor's token needs of Consul with --registration=catalog and --cluster-name=demo.
#
# It makes a Consul node for each Kubernetes node, demo-NODE, and one marker node, lictor-demo.
node_prefix "" {
  policy = "read"
}
node_prefix "demo-" {
  policy = "write"
}
node "lictor-demo" {
  policy = "write"
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
