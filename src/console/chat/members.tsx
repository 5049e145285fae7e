import { useState } from "preact/hooks";
import { ask, sessionPath } from "../api/client.js";
import type { Session } from "../api/types.js";
import { namesIn } from "../pages/new-session.js";
import { Dialog, Field } from "../parts/dialog.js";

interface MembersProps {
  session: Session;
  isOwner: boolean;
  close(): void;
  changed(): Promise<void>;
}

/** Shows the members of a session. The owner can change them. */
export function Members({ session, isOwner, close, changed }: MembersProps) {
  const { id, owner, members } = session;
  const [names, setNames] = useState(members.join(", "));
  const save = async () => {
    if (!isOwner) return;
    await ask("PATCH", sessionPath(id), { body: { members: namesIn(names) } });
    await changed();
  };
  return (
    <Dialog title={`Members of ${id}`} action={isOwner ? "Save" : "Close"} act={save} close={close}>
      <p>
        <bdi>{owner}</bdi> owns this session. Members can read all of it, and begin turns.
      </p>
      {isOwner ? (
        <Field label="Members" isFirst value={names} onValue={setNames} hint="User ids, separated by commas." />
      ) : (
        <ul class="names">
          {members.map((name) => (
            <li key={name} dir="auto">
              {name}
            </li>
          ))}
        </ul>
      )}
    </Dialog>
  );
}
