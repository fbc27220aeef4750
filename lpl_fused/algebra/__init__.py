"""What stands between the columns of a row and its gradient, the same for every backend.

parts    what a backend sums over columns, round by round, and how parts of disjoint columns join
terms    the few numbers of a row that its gradient is made of
known    what is known of the rows between rounds
rows     what labels, weights and classes say of the rows of a batch, without their logits
settle   from the sums of a round to what the next one wants to know, at last loss and terms
learned  the learned perturbation: all steps of a row alone in its class, from its sums
groups   the same of classes with several rows
statistics  lse, entropy and correctness of rows, beside their loss
sweep    all rounds of a problem, its columns in one part or in many

Everything here is small tensors, one entry a row or a few, up to 512 heads a row in each part of a
learned perturbation: no logits, but for chunks of them in `groups` and `learned`. float64
throughout, so that joining in any order costs nothing.
"""
