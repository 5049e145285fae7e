/** An error of the API, as RFC 9457 describes it, or a failure to reach the API. */
export class Problem extends Error {
  readonly status: number;
  readonly code: string;
  readonly suggestions: readonly string[];
  readonly requestId: string;

  constructor({ status, code = "", detail, suggestions = [], requestId = "" }: ProblemFields) {
    super(detail);
    this.status = status;
    this.code = code;
    this.suggestions = suggestions;
    this.requestId = requestId;
  }
}

export interface ProblemFields {
  status: number;
  code?: string;
  detail: string;
  suggestions?: readonly string[];
  requestId?: string;
}

/** Turns anything that was thrown into a problem. */
export function problemFrom(thrown: unknown): Problem {
  if (thrown instanceof Problem) return thrown;
  return new Problem({
    status: 0,
    detail: "The console cannot reach the fleet.",
    suggestions: ["Check your network, and whether serve runs. The console tries again by itself."],
  });
}

export async function problemOf(response: Response): Promise<Problem> {
  try {
    return new Problem((await response.json()) as ProblemFields);
  } catch {
    return new Problem({ status: response.status, detail: `The fleet answered with status ${response.status}.` });
  }
}
