import { useState } from "preact/hooks";
import { ask } from "../api/client.js";
import type { Session } from "../api/types.js";
import { Dialog, Field } from "../parts/dialog.js";
import { go } from "../parts/hooks.js";

export function NewSession({ close }: { close(): void }) {
  const [id, setId] = useState("");
  const [purpose, setPurpose] = useState("");
  const [members, setMembers] = useState("");
  const [ttl, setTtl] = useState("");
  const create = async () => {
    const others = namesIn(members);
    const body = {
      ...(id.trim() === "" ? {} : { id: id.trim() }),
      ...(purpose.trim() === "" ? {} : { purpose: purpose.trim() }),
      ...(ttl.trim() === "" ? {} : { ttl: ttl.trim() }),
      ...(others.length === 0 ? {} : { members: others }),
    };
    const { session } = await ask<{ session: Session }>("POST", "/v1/sessions", { body });
    go(`/sessions/${encodeURIComponent(session.id)}`);
  };
  return (
    <Dialog title="New session" action="Create" act={create} close={close}>
      <Field label="Purpose" isFirst value={purpose} onValue={setPurpose} placeholder="review" />
      <Field label="Id" value={id} onValue={setId} hint="If you leave it out, the fleet chooses one." />
      <Field
        label="Members"
        value={members}
        onValue={setMembers}
        hint="User ids, separated by commas. They may use the session, too."
      />
      <Field
        label="Time to live"
        value={ttl}
        onValue={setTtl}
        placeholder="30d"
        hint="How long to keep the session after its last use. Default: the fleet's session.ttl."
      />
    </Dialog>
  );
}

/** The user ids in a text that separates them with commas or spaces. */
export function namesIn(text: string): string[] {
  return [...new Set(text.split(/[,\s]+/).filter((name) => name !== ""))];
}
