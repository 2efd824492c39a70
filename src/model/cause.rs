//! How a removal came about, and whether all resources are being deleted at once.

/// Says how a removal came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A watch told of the change itself: a deletion, an edit, an endpoint that left.
    Observed,
    /// Concluded from a list, or from a row in Consul that nobody claims.
    Inferred,
}

/// Says what Kubernetes tells of the `CustomResourceDefinition` of our kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrdState {
    /// It stays: a resource that ends was deleted itself.
    Stays,
    /// It is being deleted or gone, and all resources with it: nobody asked to deregister anything.
    Goes,
    /// Lictor may not ask.
    Unknown,
}
