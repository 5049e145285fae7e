/** One row of the table of errors. */
export interface ErrorEntry {
  /** The exit code of a command that fails with this error. */
  exit: 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8;
  /** The HTTP status with which an API reports this error. */
  httpStatus: number;
  /** Whether the same call may succeed in a moment, without any action by the caller. */
  retryable: boolean;
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

type Row = Pick<ErrorEntry, "title" | "causes" | "fixes"> & Partial<Omit<ErrorEntry, "exit">>;

/** Makes the rows that share an exit code. `shared` applies to rows that have no value of their own. */
export function rows<Code extends string>(
  exit: ErrorEntry["exit"],
  shared: Pick<ErrorEntry, "httpStatus" | "data">,
  table: Record<Code, Row>,
): Record<Code, ErrorEntry> {
  const entries = Object.entries<Row>(table).map(([code, row]) => [
    code,
    { exit, retryable: false, ...shared, ...row },
  ]);
  return Object.fromEntries(entries) as Record<Code, ErrorEntry>;
}

/** The programs that a suggested command may start. */
const PROGRAMS = [
  "copilotfleet",
  "cat",
  "chmod",
  "chown",
  "curl",
  "date",
  "df",
  "export",
  "findmnt",
  "ip",
  "kill",
  "ls",
  "mkdir",
  "mv",
  "node",
  "npm",
  "redis-cli",
  "rm",
  "ss",
  "sudo",
  "ulimit",
  "unset",
] as const;

/**
 * A line for the shell that the user can type as it is, or with words in capitals replaced: `copilotfleet stop SERVER`.
 * A comment may follow after `#`. {@link withoutComment} removes it before a user sees the command, because an
 * interactive zsh would pass it on as arguments.
 */
type SuggestedCommand =
  `${"" | "DEBUG=1 " | `COPILOTFLEET_${string}=${string} `}${(typeof PROGRAMS)[number]} ${string}`;

/** A sentence for the user. */
type Hint = `${string}${"." | "?"}`;

/** A next step after an error. The compiler refuses a text that is neither a command nor a sentence. */
export type Suggestion = SuggestedCommand | Hint;

const COMMAND = new RegExp(`^(?:DEBUG=1 |COPILOTFLEET_\\w+=\\S* )*(?:${PROGRAMS.join("|")}) `);

/** Whether a suggestion is a command. Looks only at the text, because other hosts send suggestions as plain text. */
export function isCommand(suggestion: string): boolean {
  return COMMAND.test(suggestion);
}

/** Separates a suggested command from its comment, which is empty if there is none. */
export function withoutComment(suggestion: string): { line: string; comment: string } {
  const [, line = suggestion, comment = ""] = /^(.*?) +# (.*)$/s.exec(isCommand(suggestion) ? suggestion : "") ?? [];
  return { line, comment };
}

/** The words in a suggested command that stand for a value of the failed command. */
export type Placeholder = "USER" | "SESSION" | "SERVER";

/** Replaces the placeholders whose values are known. */
export function fillIn(suggestion: Suggestion, values: Readonly<Partial<Record<Placeholder, string>>>): Suggestion {
  if (!isCommand(suggestion)) return suggestion;
  const filled = suggestion.replace(/\b(?:USER|SESSION|SERVER)\b/g, (word) => values[word as Placeholder] ?? word);
  return filled as Suggestion;
}
