// Package allocator gives services and tasks what there is only so much of:
// published ports now; addresses of overlay networks will join it. What has
// what it needs is PENDING: the scheduler may place it.
//
// What is allocated is in the objects themselves, so the allocator's state can
// be computed from the store at any time, and nothing can leak. See
// design/allocator.md.
package allocator
