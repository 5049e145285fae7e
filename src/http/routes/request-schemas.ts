import * as v from "valibot";
import { REQUEST_KINDS, REQUEST_OUTCOMES } from "../../sessions/requests.js";

/* The schemas of the agent's permissions and questions. */

/** The field `interactive` of a prompt. */
export const interactive = v.optional(
  v.pipe(
    v.boolean("true or false"),
    v.description(
      "Whether the client answers the permissions and questions of the agent (`/requests`). Default: true if " +
        "`session.approve` is `ask`. With false, nobody is asked.",
    ),
  ),
);

const LONGEST_ANSWER = 16_000;

const ALLOWED_TEXT = `a text of at most ${LONGEST_ANSWER} characters that is not blank`;
const answerText = v.pipe(
  v.string(ALLOWED_TEXT),
  v.maxLength(LONGEST_ANSWER, ALLOWED_TEXT),
  v.check((text) => text.trim() !== "", ALLOWED_TEXT),
);

export const requestAnswer = v.strictObject({
  decision: v.optional(
    v.pipe(v.picklist(["approve", "deny"], "approve, deny"), v.description("The decision about a permission.")),
  ),
  reason: v.optional(v.pipe(answerText, v.description("For a denial: the text that the model reads."))),
  answer: v.optional(
    v.pipe(answerText, v.description("The answer to a question: one of its choices, or another text.")),
  ),
});

const time = v.pipe(v.string(), v.description("ISO 8601, in UTC."));

export const request = v.object({
  id: v.string(),
  session: v.string(),
  user: v.pipe(v.string(), v.description("The user whose turn asks, and who alone may answer.")),
  kind: v.picklist(REQUEST_KINDS),
  openedAt: time,
  expiresAt: v.pipe(v.string(), v.description("When the request ends without an answer. ISO 8601, in UTC.")),
  permission: v.pipe(
    v.nullable(v.objectWithRest({ kind: v.string() }, v.unknown())),
    v.description("The permission, with the fields of the runtime, such as `fullCommandText` of the kind `shell`."),
  ),
  question: v.nullable(
    v.object({
      question: v.string(),
      choices: v.nullable(v.array(v.string())),
      freeform: v.pipe(v.boolean(), v.description("Whether an answer may differ from the choices.")),
    }),
  ),
  outcome: v.pipe(
    v.nullable(v.picklist(REQUEST_OUTCOMES)),
    v.description("How the request ended. Null while it waits."),
  ),
});

export const requests = v.object({ requests: v.array(request) });
