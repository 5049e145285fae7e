import type { Suggestion } from "./suggestion.js";

/** One row of the table of errors. */
export interface ErrorEntry {
  /** The exit code of a command that fails with this error. */
  exit: 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8;
  /** The HTTP status with which an API reports this error. */
  httpStatus: number;
  /** True if the same call may succeed in a moment, without any action by the caller. */
  retryable?: true;
  /**
   * The meaning of the error, as a short sentence. The message of an error names the values of the call that failed.
   */
  title: string;
  /** The consequence for users' sessions and histories, for somebody who must decide how urgent the error is. */
  data: string;
  causes: readonly string[];
  /** The next steps, the most useful one first. */
  fixes: readonly Suggestion[];
  /** The next step for a client of the HTTP API, which has no shell on the host. */
  httpFix?: Suggestion;
}

type Row = Omit<ErrorEntry, "exit" | "httpStatus" | "data"> & { httpStatus?: number; data?: string };

/** Makes the rows that share an exit code. `shared` applies to rows that have no value of their own. */
export function rows<Exit extends ErrorEntry["exit"], Code extends string>(
  exit: Exit,
  shared: Pick<ErrorEntry, "httpStatus" | "data">,
  table: Record<Code, Row>,
): Record<Code, ErrorEntry & { exit: Exit }> {
  const complete = (row: Row) => ({ exit, ...shared, ...row });
  const entries = Object.entries<Row>(table).map(([code, row]) => [code, complete(row)]);
  return Object.fromEntries(entries) as Record<Code, ErrorEntry & { exit: Exit }>;
}
