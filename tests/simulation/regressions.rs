//! Seeds that failed once, and what each found, in the product or in the simulation itself.

/// The seed, and what it found.
pub const SEEDS: &[(u64, &str)] = &[
    (599, "an endpoint that left while its first write was under way stayed registered for ever"),
    (638, "a finalizer came off while a write of the resource had not been answered"),
    (777, "a readiness that flipped back while its write was under way was never written back"),
    (11211, "a finalizer came off although a bundle from before Consul was lost had landed while everything was read"),
    (11837, "likewise"),
    (753, "nobody was told whose a name is while nothing could be read in Consul: the verdict asked for it"),
    (1870, "likewise"),
    (1786, "the oracle took a row for nobody's whose mark somebody had changed on a node of ours"),
    (1841, "the oracle knew of a deletion by hand that Lictor had yet to read"),
    (426, "a removal that waited was sent although its resource had come back and waited for a list"),
    (
        2088,
        "the oracle held what was not ready, with a port that went on, where `readiness: Deregister` has it removed",
    ),
    (
        159,
        "the port in use was forgotten where the watch showed the status that named it later than the end of the pods",
    ),
    (486, "removals that began to wait while a fresh list failed waited for ever"),
    (524, "a node that a write without an answer was to make, and that could not be read then, was never read again"),
    (459, "likewise"),
    (519, "likewise"),
    (11674, "nodes that had been read when the lead was lost were forgotten, and not read again: a finalizer came off"),
    (7262, "likewise: in `agent` mode, all was written anew by what another leader had changed"),
    (14020, "a resource was told that lists were missing which had come while Consul was away"),
    (127, "Lictor took its own new term for another one's, which the marker showed before the answer to the write did"),
    (468, "likewise"),
    (554, "likewise"),
];
