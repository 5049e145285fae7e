import { useState } from "preact/hooks";
import { ask, type Problem, problemFrom, segment, sessionPath } from "../api/client.js";
import type { AgentRequest } from "../api/types.js";
import { Button, ProblemNotice } from "../parts/notice.js";

interface RequestCardProps {
  sessionId: string;
  request: AgentRequest;
  mayAnswer: boolean;
  answered(requestId: string): void;
}

/** Asks the user for a permission, or passes on a question of the agent. */
export function RequestCard({ sessionId, request, mayAnswer, answered }: RequestCardProps) {
  const [problem, setProblem] = useState<Problem>();
  const [isBusy, setBusy] = useState(false);
  const answer = async (body: object) => {
    setBusy(true);
    try {
      await ask("POST", sessionPath(sessionId, `/requests/${segment(request.id)}`), { body });
      answered(request.id);
    } catch (error) {
      const failure = problemFrom(error);
      // Another page of the user has answered first, or the turn has ended. So remove the card.
      if (failure.status === 404 || failure.status === 409) return answered(request.id);
      setProblem(failure);
      setBusy(false);
    }
  };
  const props = { isDisabled: isBusy || !mayAnswer, answer };
  return (
    <section class="request" tabIndex={-1} aria-label={request.kind === "permission" ? "Permission" : "Question"}>
      {request.permission !== null && <Permission permission={request.permission} {...props} />}
      {request.question !== null && <Question question={request.question} {...props} />}
      <ProblemNotice problem={problem} />
    </section>
  );
}

interface AnswerProps {
  isDisabled: boolean;
  answer(body: object): Promise<void>;
}

const TITLES: Readonly<Record<string, string>> = {
  shell: "The agent wants to run a command",
  write: "The agent wants to write a file",
  read: "The agent wants to read a file",
  url: "The agent wants to open an address",
  mcp: "The agent wants to use a tool of an MCP server",
  memory: "The agent wants to remember something",
  "custom-tool": "The agent wants to use a tool",
};
/** The fields of a permission that a person needs in order to decide, the most important one first. */
const SHOWN = [
  "fullCommandText",
  "fileName",
  "path",
  "url",
  "serverName",
  "toolName",
  "toolTitle",
  "fact",
  "intention",
  "diff",
  "args",
];

/**
 * Makes characters visible that change the direction of text, because they can make a command look like another one.
 */
function withoutHidden(text: string): string {
  return text.replace(/[\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (found) => `\\u${found.charCodeAt(0).toString(16)}`);
}

function Permission({
  permission,
  isDisabled,
  answer,
}: AnswerProps & { permission: NonNullable<AgentRequest["permission"]> }) {
  const [reason, setReason] = useState("");
  const fields = SHOWN.flatMap((name) => {
    const value = permission[name];
    if (value === undefined || value === null || value === "") return [];
    return [[name, typeof value === "string" ? value : JSON.stringify(value, null, 2)] as const];
  });
  // The page knows none of the fields. Nobody should approve what they cannot see, so show the whole permission.
  if (fields.length === 0) fields.push(["permission", JSON.stringify(permission, null, 2)]);
  return (
    <>
      <h2>{TITLES[permission.kind] ?? `The agent asks for a permission: ${permission.kind}`}</h2>
      {fields.map(([name, value], index) => (
        <pre key={name} dir="ltr" class={index === 0 ? "request-main" : ""}>
          {withoutHidden(value)}
        </pre>
      ))}
      <div class="request-buttons">
        <Button class="primary" isDisabled={isDisabled} act={() => void answer({ decision: "approve" })}>
          Approve
        </Button>
        <Button
          isDisabled={isDisabled}
          act={() => void answer({ decision: "deny", ...(reason.trim() === "" ? {} : { reason: reason.trim() }) })}
        >
          Deny
        </Button>
        <input
          class="request-reason"
          dir="auto"
          aria-label="Reason for a refusal (optional)"
          placeholder="Reason, if you deny"
          value={reason}
          onInput={({ currentTarget }) => setReason(currentTarget.value)}
        />
      </div>
    </>
  );
}

function Question({ question, isDisabled, answer }: AnswerProps & { question: NonNullable<AgentRequest["question"]> }) {
  const [text, setText] = useState("");
  const { choices } = question;
  return (
    <form
      onSubmit={(event) => {
        event.preventDefault();
        if (text.trim() !== "") void answer({ answer: text });
      }}
    >
      <h2 dir="auto">{question.question}</h2>
      <div class="request-buttons">
        {choices?.map((choice) => (
          <Button key={choice} isDisabled={isDisabled} act={() => void answer({ answer: choice })}>
            <bdi>{choice}</bdi>
          </Button>
        ))}
      </div>
      {(question.freeform || choices === null) && (
        <div class="request-buttons">
          <input
            class="request-reason"
            dir="auto"
            aria-label="Answer"
            placeholder="Your answer"
            value={text}
            onInput={({ currentTarget }) => setText(currentTarget.value)}
          />
          <button type="submit" class="button primary" disabled={isDisabled || text.trim() === ""}>
            Answer
          </button>
        </div>
      )}
    </form>
  );
}
