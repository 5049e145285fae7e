import { useEffect, useState } from "preact/hooks";
import { ask, problemFrom } from "../api/client.js";
import type { Answer, Server } from "../api/types.js";
import { Dialog, Field, type Values } from "../parts/dialog.js";
import { plural } from "../parts/hooks.js";
import { Button } from "../parts/notice.js";

export type Verb = "restart" | "drain" | "stop";

/** An action on a server. It continues while the operator looks at other pages. */
interface Operation {
  key: number;
  server: string;
  state: "running" | "done" | "failed";
  text: string;
}

const DOING = { restart: "Restarting", drain: "Draining", stop: "Stopping" } as const;

/** The running actions, and the ended ones whose message the operator has not dismissed, the newest first. */
let operations: readonly Operation[] = [];
const listeners = new Set<(now: readonly Operation[]) => void>();

/** Shows an operation in this state, or removes it if the state is null. */
function note(key: number, operation: Operation | null): void {
  const others = operations.filter((each) => each.key !== key);
  operations = operation === null ? others : [operation, ...others].sort((a, b) => b.key - a.key);
  for (const listener of listeners) listener(operations);
}

/** Starts an action on a server. `Operations` shows that it runs, and then its outcome. */
function begin(server: Server, verb: Verb, body: object): void {
  const reference = referenceOf(server);
  const key = (operations[0]?.key ?? 0) + 1;
  const show = (state: Operation["state"], text: string) => note(key, { key, server: reference, state, text });
  show("running", `${DOING[verb]} ${reference}…`);
  const path = `/v1/servers/${encodeURIComponent(reference)}/${verb}`;
  void ask<Partial<Answer<"restartServer">>>("POST", path, { body }).then(
    ({ stopped, servers }) => show("done", resultOf(reference, stopped?.[0]?.cut.length ?? 0, servers?.[0]?.pid)),
    (error: unknown) => show("failed", `${reference}: ${problemFrom(error).message}`),
  );
}

export function useOperations(): readonly Operation[] {
  const [now, setNow] = useState(operations);
  useEffect(() => {
    setNow(operations);
    listeners.add(setNow);
    return () => void listeners.delete(setNow);
  }, []);
  return now;
}

export function Operations() {
  return (
    <div class="operations" role="status">
      {useOperations().map((operation) => (
        <p key={operation.key} class={`operation ${operation.state}`}>
          <span class="operation-text">{operation.text}</span>
          {operation.state !== "running" && (
            <Button class="small plain" act={() => note(operation.key, null)}>
              Dismiss
            </Button>
          )}
        </p>
      ))}
    </div>
  );
}

function resultOf(reference: string, cut: number, again: number | null | undefined): string {
  const turns = cut === 0 ? "" : ` ${plural(cut, "turn")} had to be cut.`;
  return again == null ? `${reference} has stopped.${turns}` : `${reference} runs again, as process ${again}.${turns}`;
}

const TITLES = { restart: "Restart", drain: "Drain", stop: "Stop" } as const;
const ENDS = {
  restart: "Then the server starts again, with the same home.",
  drain: "Then the server stops. The next use of one of its sessions starts it again.",
  stop: "Then the server stops. The next use of one of its sessions starts it again.",
} as const;

/** Asks for confirmation before an action on a server, and states what will happen to turns and sessions. */
export function ServerAction({ server, verb }: { server: Server; verb: Verb }) {
  const [isForced, setForced] = useState(false);
  const isStart = verb === "restart" && server.pid === null;
  const title = isStart ? "Start" : TITLES[verb];
  const act = async (given: Values) => begin(server, verb, isForced ? { force: true } : given);
  return (
    <Dialog
      title={`${title} ${referenceOf(server)}?`}
      action={isForced ? `${title} now` : title}
      isDangerous={verb !== "restart" || isForced}
      effects={
        isStart
          ? ["The server starts with the same home and sessions."]
          : [turnsText(server, isForced), sessionsText(server), ENDS[verb]]
      }
      act={act}
    >
      {verb !== "drain" && !isStart && (
        <label class="check">
          <input type="checkbox" checked={isForced} onChange={() => setForced(!isForced)} />
          Do not wait for turns
        </label>
      )}
      {!isForced && !isStart && (
        <Field
          name="drainTimeout"
          label="Wait for turns at most"
          placeholder="30s"
          hint="A duration. If you leave it out, the fleet's setting drain.timeout counts."
        />
      )}
    </Dialog>
  );
}

function turnsText({ turns }: Server, isForced: boolean): string {
  if (isForced)
    return turns === null || turns === 0 ? "Turns are cut." : `${plural(turns, "turn")} in flight will be cut.`;
  if (turns === null)
    return "The server takes no new turns. Turns in flight may end first. What still runs after that is cut.";
  if (turns === 0) return "No turn is in flight. The server takes no new turns.";
  return `The server takes no new turns. ${plural(turns, "turn")} in flight may end first. What still runs after that is cut.`;
}

function sessionsText({ sessions }: Server): string {
  if (sessions === null || sessions === 0) return "All sessions stay on disk.";
  return sessions === 1 ? "Its session stays on disk." : `Its ${sessions} sessions stay on disk.`;
}

/** The name of a server in the API, which is unique even if several hosts have a server with this id. */
export function referenceOf({ id, hostName }: Pick<Server, "id" | "hostName">): string {
  return hostName === null ? id : `${id}@${hostName}`;
}
