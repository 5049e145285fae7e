/** How much of one kind of use the Copilot plan of a user still includes, as GitHub reports it. */
export interface QuotaPart {
  /** GitHub's name of the kind, such as `premium_interactions`. */
  kind: string;
  /** Requests in the present period. */
  used: number;
  /** Requests that the plan includes in a period. Null: unlimited. */
  included: number | null;
  /** Requests beyond those that the plan includes. */
  overage: number;
  /** When the next period begins, in ISO 8601. Null if GitHub does not report it. */
  resetsAt: string | null;
}
