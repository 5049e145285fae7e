/** One row of the table of errors. */
export interface ErrorEntry {
  /** The exit code of a command that fails with this error. */
  exit: 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8;
  /** The HTTP status with which an API reports this error. */
  httpStatus: number;
  /** True if the same call may succeed in a moment, with nothing done by the caller. */
  retryable?: true;
  /** The meaning of the error, as a short sentence. The message of an error names the values of the call that failed. */
  title: string;
  causes: readonly string[];
  /** The next steps. Each is a command that can be typed, or a sentence that can be followed as it stands. */
  fixes: readonly string[];
}
