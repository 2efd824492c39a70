//! What to do about a reason, in a sentence or two. The page about conditions says more of each.

/// The advice for a reason; as the conditions name it, or as `explain` does.
pub(super) fn advice(reason: &str) -> &'static str {
    match reason {
        "NoSuchPod" => "Check the name and the namespace (-n), or look into all namespaces (-A).",
        "NotFound" => {
            "Check the name and the namespace (-n), or look into all namespaces (-A). A pod is asked for as pod/NAME."
        }
        "TwoMatches" => "Ask for one of them: csvc/NAME with -n NAMESPACE, or pod/NAME with -n NAMESPACE.",
        "NoConsulService" => {
            "Create a ConsulService in this namespace whose source is the pod's Service or its labels."
        }
        "NotPicked" => {
            "Correct the labels of the pod, the selector, or the source of the ConsulService, as the lines above say."
        }
        "NoAddress" => "The pod has no IP address yet: kubectl describe pod says why it does not start.",
        "PodEnded" => "A pod that has ended is not registered. Its replacement is.",
        "Terminating" => {
            "Nothing: a pod that is being deleted leaves Consul before it ends. Its replacement is registered."
        }
        "NotInSlice" => {
            "Wait a moment. If it stays, Kubernetes' EndpointSlice controller does not run, or the Service is a new one."
        }
        "NotReady" => "Make the pod ready: kubectl describe pod shows the readiness probe that fails.",
        "NoStatus" => {
            "Ask the administrator of Lictor whether it runs, whether it watches this namespace (--namespace), and whether its \
             --class is the spec.class of the resource."
        }
        "NotSeenYet" => {
            "Wait a few seconds. If it stays, Lictor does not run: ask the administrator to look at its /readyz and its log."
        }
        "Deleting" => {
            "Nothing: the resource is being deleted, and its instances with it. If it stays, see /readyz of Lictor."
        }
        "NoInstances" => {
            "Check that the Service selects pods (kubectl get endpointslices), or that pods with the labels of the selector run."
        }
        "NotWritten" | "Differs" => {
            "Wait a few seconds: Lictor writes what differs. If it stays, ask the administrator to look at /readyz and the log of \
             Lictor."
        }
        "NotDesired" => "Read the lines above: something of them keeps the pod out.",
        "CheckFails" => "Make the check pass: its last output is above. Consul runs it against the address of the pod.",
        "NodeFails" => {
            "The Consul node is critical, and all instances on it: with --registration=agent the agent is away, or somebody added \
             a check to the node."
        }
        "Away" => "Ask again when both sides answer; what is marked with ? is not known.",
        "NameConflict" => {
            "Set another spec.name, or ask the administrator for --allow-shared-names; the log of Lictor says which resource has \
             the name."
        }
        "InvalidTemplate" => "Correct the template in tags or meta, as the message says.",
        "NotAllowed" => "Change the resource as the message says, or ask the administrator to allow it.",
        "TooLarge" => "Shorten or split the resource, or ask the administrator for a larger --max-namespace-bytes.",
        "NotSupported" => "Remove the field, or ask the administrator for what it needs, as the message says.",
        "Invalid" => "Correct the spec, as the message says.",
        "Undecodable" => "Install the CustomResourceDefinition of this Lictor: lictor crd | kubectl apply -f -.",
        "NotListed" => "Wait a moment. If it stays, Lictor's role lacks list and watch on that kind: /readyz says so.",
        "ServiceNotFound" => "Create the Service, or correct spec.source.service.name.",
        "PortNotFound" => "Set spec.port to a port that is there, or give the pod the port.",
        "TooManyInstances" => "Match fewer pods, or ask the administrator for a larger limit.",
        "ExternalName" | "FQDNSlices" => "Name a Service that has endpoints with IP addresses.",
        "NotAccepted" => "See the condition Accepted.",
        "NotResolved" => "See the condition Resolved.",
        "Paused" => "Remove the annotation lictor.dev/paused from the resource.",
        "MassUnready" => "Check the nodes: most pods stopped being ready at once.",
        "Pending" => "Wait a few seconds. If it stays, ask the administrator to look at /readyz and the log of Lictor.",
        "EndpointsMissing" => "Wait: it ends by itself within a minute.",
        "Refused" => "Read Consul's words in the message: usually the token of Lictor lacks a permission.",
        "IdTaken" => "Give the clusters different names (--cluster-name), or remove the entry in Consul.",
        "OnAnotherAgent" => "Start Lictor with --previous-agent and the address of that agent.",
        "CheckPortNotFound" => "Add the port to the pod, or correct spec.checks[].port.",
        "NotVerified" => "Lictor runs with --verify-endpoints: only addresses of pods of the namespace are registered.",
        "PodNotSeen" => "Wait a moment. If it stays, the endpoint names a pod that does not exist.",
        "NotInCatalog" => "Check the token of Lictor and of the agent: it may lack service:write.",
        "ConsulUnavailable" => "Ask the administrator: /readyz and the log of Lictor say what is wrong with Consul.",
        _ => "See docs/conditions.md for this reason.",
    }
}
