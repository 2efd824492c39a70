// The Prometheus operator's definitions of ServiceMonitor and PrometheusRule, as files of its module. Nothing of it is
// built. To move to another version: go get github.com/prometheus-operator/prometheus-operator@VERSION
module lictor/programs/prometheus-operator

go 1.26.0

require github.com/prometheus-operator/prometheus-operator v0.85.0 // indirect
