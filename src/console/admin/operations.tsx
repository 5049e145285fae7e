import { useEffect, useState } from "preact/hooks";
import { ask } from "../api/client.js";
import { problemFrom } from "../api/problem.js";
import { plural } from "../parts/show.js";
import { referenceOf, type Server, type Stopped } from "./types.js";

export type Verb = "restart" | "drain" | "stop";

/** An action on a server. It continues while the operator looks at other pages. */
export interface Operation {
  key: number;
  server: string;
  verb: Verb;
  state: "running" | "done" | "failed";
  text: string;
}

const DOING = { restart: "Restarting", drain: "Draining", stop: "Stopping" } as const;

const operations = new Map<number, Operation>();
const listeners = new Set<() => void>();
let last = 0;

/** Starts an action on a server. `Operations` shows that it runs, and then its outcome. */
export function begin(server: Server, verb: Verb, body: object): void {
  const reference = referenceOf(server);
  last += 1;
  const operation: Operation = {
    key: last,
    server: reference,
    verb,
    state: "running",
    text: `${DOING[verb]} ${reference}…`,
  };
  note(operation);
  const path = `/v1/servers/${encodeURIComponent(reference)}/${verb}`;
  void ask<{ stopped: Stopped[]; servers?: Server[] }>("POST", path, { body }).then(
    ({ stopped, servers }) =>
      note({ ...operation, state: "done", text: resultOf(reference, stopped[0], servers?.[0]) }),
    (error: unknown) => {
      const { message } = problemFrom(error);
      note({ ...operation, state: "failed", text: `${reference}: ${message}` });
    },
  );
}

export function dismiss({ key }: Operation): void {
  operations.delete(key);
  for (const listener of listeners) listener();
}

/** The running actions, and the ended actions whose message the operator has not dismissed, the newest first. */
export function useOperations(): readonly Operation[] {
  const [, look] = useState(0);
  useEffect(() => {
    const listener = () => look((count) => count + 1);
    listeners.add(listener);
    return () => void listeners.delete(listener);
  }, []);
  return [...operations.values()].toReversed();
}

export function Operations() {
  return (
    <div class="operations" role="status">
      {useOperations().map((operation) => (
        <p key={operation.key} class={`operation ${operation.state}`}>
          <span class="operation-text">{operation.text}</span>
          {operation.state !== "running" && (
            <button type="button" class="button small plain" onClick={() => dismiss(operation)}>
              Dismiss
            </button>
          )}
        </p>
      ))}
    </div>
  );
}

function resultOf(reference: string, stopped: Stopped | undefined, again: Server | undefined): string {
  const cut = stopped?.cut.length ?? 0;
  const turns = cut === 0 ? "" : ` ${plural(cut, "turn")} had to be cut.`;
  if (again !== undefined) return `${reference} runs again, as process ${again.pid}.${turns}`;
  return `${reference} has stopped.${turns}`;
}

function note(operation: Operation): void {
  operations.set(operation.key, operation);
  for (const listener of listeners) listener();
}
