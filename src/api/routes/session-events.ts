import * as v from "valibot";
import { request } from "./requests/schemas.js";
import { object, time, turn } from "./schemas.js";

/* The events in the streams of a turn and of a session: which of them a client gets, and their schemas. */

const string = v.string();
const requests = ["request.opened", "request.closed"] as const;

/** The events of each group that `?events=` can name. */
const GROUPS = {
  text: ["user.message", "assistant.message_delta", "assistant.message"],
  tools: ["tool.execution_start", "tool.execution_complete", ...requests],
  requests,
} as const;
/** The events that every stream has, because they show how a turn or the stream ended. */
const ENDS = ["session.error", "abort", "session.shutdown", "turn.end", "problem"] as const;
type Group = keyof typeof GROUPS;

const ALLOWED = `a list of ${[...Object.keys(GROUPS), "all"].join(", ")}, with commas between them`;
const DEFAULT = "text,tools";

const events = v.optional(
  v.pipe(
    v.string(ALLOWED),
    v.check((given) => given.split(",").every((each) => each === "all" || Object.hasOwn(GROUPS, each)), ALLOWED),
    v.description(
      "The groups of events to send, with commas between them. `text`: prompts and replies. `tools`: tool calls, " +
        "permissions and questions. `requests`: permissions and questions alone. `all`: everything that the runtime sends, " +
        `also the system prompt. The ends of turns are always sent. Default: \`${DEFAULT}\`.`,
    ),
  ),
);

export const turnQuery = object({
  events,
  abort: v.optional(
    v.pipe(
      v.picklist(["disconnect"], "disconnect"),
      v.description("With `disconnect`, the turn is aborted when the client closes the connection."),
    ),
  ),
});

export const eventsQuery = object({
  events,
  follow: v.optional(
    v.pipe(
      v.picklist(["true", "false"], "true, false"),
      v.description("With `false`, the stream ends with the last event that is recorded. Default: `true`."),
    ),
  ),
});

/** Returns whether the client gets an event of this type. @param groups the value of `?events=` */
export function selection(groups: string = DEFAULT): (type: string) => boolean {
  const chosen = groups.split(",");
  if (chosen.includes("all")) return () => true;
  const types = new Set<string>([...ENDS, ...(chosen as Group[]).flatMap((group) => [...GROUPS[group]])]);
  return (type) => types.has(type);
}

/** An object with at least these fields. */
const open = <Entries extends v.ObjectEntries>(entries: Entries) => v.objectWithRest(entries, v.unknown());

/** The schema of an event of the runtime, with the fields that clients need. */
function runtimeEvent(type: string, description: string, data: v.ObjectEntries) {
  return v.pipe(
    open({
      type: v.picklist([type]),
      id: string,
      timestamp: time,
      agentId: v.optional(v.pipe(string, v.description("The sub-agent whose event this is."))),
      data: open(data),
    }),
    v.description(description),
  );
}

const toolCallId = v.pipe(string, v.description("The same in both events of a call."));

/** The schemas of the events' data, for the OpenAPI document. `problem` is missing, because its schema is there. */
export const SESSION_EVENTS = {
  "user.message": runtimeEvent("user.message", "A prompt.", {
    content: string,
    messageId: v.optional(v.pipe(string, v.description("The id of the turn."))),
    source: v.optional(
      v.pipe(string, v.description("The sender, if it is not the user, such as a part of the runtime.")),
    ),
  }),
  "assistant.message_delta": runtimeEvent("assistant.message_delta", "A piece of a reply. Not recorded.", {
    messageId: v.pipe(string, v.description("The message that the piece belongs to.")),
    deltaContent: string,
  }),
  "assistant.message": runtimeEvent("assistant.message", "A message of the model, in full.", {
    messageId: string,
    content: v.pipe(string, v.description("Empty if the model only calls tools.")),
    toolRequests: v.optional(v.array(open({ toolCallId: string, name: string }))),
  }),
  "tool.execution_start": runtimeEvent("tool.execution_start", "A tool call begins.", {
    toolCallId,
    toolName: string,
    arguments: v.optional(v.unknown()),
  }),
  "tool.execution_complete": runtimeEvent("tool.execution_complete", "A tool call has ended.", {
    toolCallId,
    success: v.boolean(),
    result: v.optional(open({ content: string })),
    error: v.optional(open({ message: string, code: v.optional(string) })),
  }),
  "request.opened": request,
  "request.closed": request,
  "session.error": runtimeEvent("session.error", "The turn failed.", {
    message: string,
    statusCode: v.optional(v.pipe(v.number(), v.description("The status of the model service's answer."))),
  }),
  abort: runtimeEvent("abort", "The turn was aborted.", { reason: string }),
  "session.shutdown": runtimeEvent("session.shutdown", "The session was unloaded. A turn that runs is cut.", {}),
  "turn.end": turn,
};
