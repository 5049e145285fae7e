import { useState } from "preact/hooks";
import { ask } from "../api/client.js";
import type { Scope } from "../api/types.js";
import { Dialog, Field } from "../parts/dialog.js";
import { exact } from "../parts/show.js";
import type { IssuedToken } from "./types.js";

const SCOPES: readonly (readonly [Scope, string])[] = [
  ["read", "see the user's sessions and conversations"],
  ["use", "also talk to the user's agents"],
  ["admin", "also manage servers, hosts and tokens of all users"],
  ["issue", "only issue tokens for all users, and so act as any of them"],
];
const LIFETIMES: readonly (readonly [value: string, title: string])[] = [
  ["", "The fleet's default"],
  ["1h", "1 hour"],
  ["24h", "1 day"],
  ["30d", "30 days"],
  ["90d", "90 days"],
  ["never", "Never"],
];

export function NewToken({ close, issued }: { close(): void; issued(token: IssuedToken): void }) {
  const [user, setUser] = useState("");
  const [scope, setScope] = useState<Scope>("use");
  const [ttl, setTtl] = useState("");
  const [sessionId, setSessionId] = useState("");
  const [label, setLabel] = useState("");
  const act = async () => {
    const body = {
      user: user.trim(),
      scopes: [scope],
      ...(ttl === "" ? {} : { ttl }),
      ...(sessionId.trim() === "" ? {} : { sessionId: sessionId.trim() }),
      ...(label.trim() === "" ? {} : { label: label.trim() }),
    };
    issued(await ask<IssuedToken>("POST", "/v1/tokens", { body }));
  };
  return (
    <Dialog title="Issue a token" action="Issue" act={act} close={close}>
      <Field
        label="User"
        isFirst
        value={user}
        onValue={setUser}
        hint="The user as whom programs with this token act."
      />
      <Field label="Label" value={label} onValue={setLabel} hint="What the token is for. Lists show it." />
      <fieldset class="choices">
        <legend>Scope</legend>
        {SCOPES.map(([value, meaning]) => (
          <label key={value} class="choice">
            <input type="radio" name="scope" checked={scope === value} onChange={() => setScope(value)} />
            <span>
              {value} <span class="quiet">{meaning}</span>
            </span>
          </label>
        ))}
      </fieldset>
      <div class="field">
        <label for="token-ttl">Expires after</label>
        <select id="token-ttl" value={ttl} onChange={({ currentTarget }) => setTtl(currentTarget.value)}>
          {LIFETIMES.map(([value, title]) => (
            <option key={value} value={value}>
              {title}
            </option>
          ))}
        </select>
      </div>
      {ttl === "never" && <p class="notice warn">Whoever steals this token can use it until somebody revokes it.</p>}
      <Field
        label="Session"
        value={sessionId}
        onValue={setSessionId}
        hint="The only session that the token is valid for. If you leave it out: all sessions of the user."
      />
    </Dialog>
  );
}

/** Shows the secret of a new token, which the console never shows again. */
export function IssuedDialog({ token, close }: { token: IssuedToken; close(): void }) {
  const [isCopied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard?.writeText(token.token);
    setCopied(true);
  };
  return (
    <Dialog title={`The token of ${token.user}`} action="Done" isNotice act={async () => undefined} close={close}>
      <p>Copy the token now. The fleet keeps only a hash of it, and nobody can see it again.</p>
      <div class="secret">
        <code>{token.token}</code>
        <button type="button" class="button small" onClick={() => void copy()}>
          {isCopied ? "Copied" : "Copy"}
        </button>
      </div>
      <p class="quiet" role="status">
        {isCopied && "The token is in the clipboard. "}
        {token.expiresAt === null ? "It never expires." : `It expires on ${exact(token.expiresAt)}.`}
      </p>
    </Dialog>
  );
}
