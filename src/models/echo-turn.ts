/** What the echo model makes of a request. */
export interface EchoTurn {
  /** The name of the model that was asked for. */
  model: string;
  /** The whole answer: "[turn 2] again". */
  reply: string;
  /** How long the prompt says that the turn takes, or null. */
  delayMs: number | null;
  /** What the prompt says to fail with, or null. */
  failure: string | null;
  stream: boolean;
  /** Whether the last chunk of a stream has to carry the usage. */
  streamUsage: boolean;
  promptTokens: number;
}

const LONGEST_DELAY_MS = 10 * 60 * 1000;

/** The turn that a request's body asks for, or a sentence that says what is wrong with it. */
export function readTurn(body: string): EchoTurn | string {
  const request = parseObject(body);
  if (request === null) return "The body is not a JSON object";
  if (!Array.isArray(request.messages)) return "messages is not a list";
  const said = request.messages.filter(isUserMessage).map(({ content }) => stripWrappers(textOf(content)));
  const last = said.at(-1);
  if (last === undefined) return "messages has nothing from the user";
  const delay = /^!delay (\d{1,9})(?:\s+|$)/.exec(last);
  const fail = /^!fail(?:\s+|$)/.exec(last);
  const options = parseObject(request.stream_options) ?? {};
  return {
    model: typeof request.model === "string" ? request.model : "echo",
    reply: `[turn ${said.length}] ${delay === null ? last : last.slice(delay[0].length)}`,
    delayMs: delay === null ? null : Math.min(Number(delay[1]), LONGEST_DELAY_MS),
    failure: fail === null ? null : last.slice(fail[0].length) || "The prompt asked to fail",
    stream: request.stream === true,
    streamUsage: options.include_usage === true,
    promptTokens: countTokens(body),
  };
}

/** About one token every four characters: enough for an accounting that only has to add up. */
export function countTokens(text: string): number {
  return Math.ceil(text.length / 4);
}

/**
 * What the runtime puts around the user's own words (seen with 1.0.102: the time before them, files after them). Known
 * names only, and only at the ends: the user's own markup stays.
 */
const WRAPPER =
  "<(current_datetime|system_reminder|reminder|system_notification|tagged_files|environment_context|session_context|context_window_reminder|ide_selection)>[\\s\\S]*?</\\1>";
const LEADING = new RegExp(`^\\s*${WRAPPER}\\s*`);
const TRAILING = new RegExp(`\\s*${WRAPPER}\\s*$`);

export function stripWrappers(text: string): string {
  let rest = text;
  for (let before = ""; before !== rest; ) {
    before = rest;
    rest = rest.replace(LEADING, "").replace(TRAILING, "");
  }
  return rest;
}

function isUserMessage(message: unknown): message is { content: unknown } {
  return (
    typeof message === "object" &&
    message !== null &&
    "role" in message &&
    message.role === "user" &&
    "content" in message
  );
}

/** A message's text: the content itself, or its text parts. */
function textOf(content: unknown): string {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return "";
  const texts = content.map((part: unknown) =>
    typeof part === "object" && part !== null && "text" in part && typeof part.text === "string" ? part.text : "",
  );
  return texts.filter((text) => text !== "").join("\n");
}

function parseObject(given: unknown): Record<string, unknown> | null {
  let value = given;
  if (typeof given === "string") {
    try {
      value = JSON.parse(given);
    } catch {
      return null;
    }
  }
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : null;
}
