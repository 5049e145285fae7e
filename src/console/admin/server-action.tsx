import { useState } from "preact/hooks";
import { Dialog, Field } from "../parts/dialog.js";
import { plural } from "../parts/show.js";
import { begin, type Verb } from "./operations.js";
import { referenceOf, type Server } from "./types.js";

const TITLES = { restart: "Restart", drain: "Drain", stop: "Stop" } as const;
const ENDS = {
  restart: "Then the server starts again, with the same home.",
  drain: "Then the server stops. The next use of one of its sessions starts it again.",
  stop: "Then the server stops. The next use of one of its sessions starts it again.",
} as const;

/** Asks for confirmation before an action on a server, and states what will happen to turns and sessions. */
export function ServerAction({ server, verb, close }: { server: Server; verb: Verb; close(): void }) {
  const [isForced, setForced] = useState(false);
  const [drainTimeout, setDrainTimeout] = useState("");
  const isStart = verb === "restart" && server.pid === null;
  const title = isStart ? "Start" : TITLES[verb];
  const act = async () => {
    const wait = drainTimeout.trim() === "" || isForced ? {} : { drainTimeout: drainTimeout.trim() };
    begin(server, verb, { ...wait, ...(isForced ? { force: true } : {}) });
  };
  return (
    <Dialog
      title={`${title} ${referenceOf(server)}?`}
      action={isForced ? `${title} now` : title}
      isDangerous={verb !== "restart" || isForced}
      act={act}
      close={close}
    >
      {isStart ? (
        <p>The server starts with the same home and sessions.</p>
      ) : (
        <ul class="effects">
          <li>{turnsText(server, isForced)}</li>
          <li>{sessionsText(server)}</li>
          <li>{ENDS[verb]}</li>
        </ul>
      )}
      {verb !== "drain" && !isStart && (
        <label class="check">
          <input type="checkbox" checked={isForced} onChange={() => setForced(!isForced)} />
          Do not wait for turns
        </label>
      )}
      {!isForced && !isStart && (
        <Field
          label="Wait for turns at most"
          value={drainTimeout}
          onValue={setDrainTimeout}
          placeholder="30s"
          hint="A duration. If you leave it out, the fleet's setting drain.timeout counts."
        />
      )}
    </Dialog>
  );
}

function turnsText({ turns }: Server, isForced: boolean): string {
  if (isForced)
    return turns === null || turns === 0 ? "Turns are cut." : `${upper(plural(turns, "turn"))} in flight will be cut.`;
  if (turns === null)
    return "The server takes no new turns. Turns in flight may end first. What still runs after that is cut.";
  if (turns === 0) return "No turn is in flight. The server takes no new turns.";
  return `The server takes no new turns. ${plural(turns, "turn")} in flight may end first. What still runs after that is cut.`;
}

function sessionsText({ sessions }: Server): string {
  if (sessions === null || sessions === 0) return "All sessions stay on disk.";
  return sessions === 1 ? "Its session stays on disk." : `Its ${sessions} sessions stay on disk.`;
}

function upper(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
