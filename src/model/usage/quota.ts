/** The quota of a user's Copilot plan for one kind of request, and how much of it is used, as GitHub reports it. */
export interface QuotaPart {
  /** GitHub's name of the kind, such as `premium_interactions`. */
  kind: string;
  /** Requests that the user has made in the present period. */
  used: number;
  /** Requests that the plan includes in a period. Null: unlimited. */
  included: number | null;
  /** Requests beyond those that the plan includes. */
  overage: number;
  /** When the next period begins, in ISO 8601. Null if GitHub does not report it. */
  resetsAt: string | null;
}
