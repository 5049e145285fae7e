import { printable, redact, shellQuote } from "../config/values/text.js";
import type { Suggestion } from "../errors.js";
import { unmarked } from "./prompt/prompt.js";

/** The words of a refused command line. */
export interface Typed {
  args: readonly string[];
  /** The values of the flags by their names. */
  flags: ReadonlyMap<string, string>;
  /** Whether arguments are missing. If not, there are too many. */
  isMissing: boolean;
}

/** Reads the typed words from an error that oclif threw. */
export function typedIn(error: Error): Pick<Typed, "args" | "flags"> {
  const { raw = [] } = (error as { parse?: { output?: { raw?: readonly Token[] } } }).parse?.output ?? {};
  const ofType = (type: Token["type"]) => raw.filter((token) => token.type === type);
  return {
    args: ofType("arg").map(({ input }) => unmarked(input)),
    flags: new Map(ofType("flag").map(({ flag = "", input }) => [flag, input])),
  };
}

interface Token {
  type: "arg" | "flag";
  flag?: string;
  input: string;
}

/** Suggests command lines of `command` with the typed words in the right places; empty if there is no advice. */
export function meantArguments(command: string, typed: Typed): Suggestion[] {
  const advice = ADVICE[command]?.(typed) ?? [];
  // Leave out lines that redact() changes, because they may contain a secret. Leave out very long lines, too.
  return advice.filter((line) => redact(line) === line && line.length <= 200);
}

const ADVICE: Readonly<Record<string, (typed: Typed) => Suggestion[]>> = {
  send: ({ args: [session = "SESSION", ...words], flags, isMissing }) => {
    const user = word(flags.get("user") ?? "USER");
    return isMissing
      ? [`copilotfleet send ${word(session)} - --user ${user} # reads the prompt from standard input`]
      : [
          `copilotfleet send ${word(session)} ${word(words.join(" "))} --user ${user} # quotes make the text one argument`,
        ];
  },
  create: inQuotes,
  resume: inQuotes,
  describe: ({ args: [kind = "", name] }) => {
    return KINDS.includes(kind) && name !== undefined ? [`copilotfleet describe ${kind}/${word(name)}`] : [];
  },
  unlock: ({ args: [session = "SESSION"], isMissing }) =>
    isMissing ? [] : [`copilotfleet unlock ${word(session)} --token TOKEN`],
};

/** The kinds of things that `describe` shows. */
const KINDS = ["session", "server", "user"];

function inQuotes({ flags }: Typed): Suggestion[] {
  return flags.has("prompt") ? ["Put the whole prompt in quotes."] : [];
}

function word(text: string): string {
  return shellQuote(printable(text));
}
