import { useState } from "preact/hooks";
import { ask } from "../api/client.js";
import type { Answer, IssuedToken, Scope, Token } from "../api/types.js";
import { Dialog, Field, useDialog, type Values } from "../parts/dialog.js";
import { ago, exact, plural, useAnswer } from "../parts/hooks.js";
import { Ago, Badge, Button, Choice, More, Name } from "../parts/notice.js";
import { actions, type Column, ListPage, Table, time } from "../parts/table.js";
import type { PageProps } from "../shell.js";

const EVERY_MS = 5_000;
const PAGE = 200;
/** A token that expires sooner than this is shown as a warning: 7 days. */
const SOON_MS = 7 * 86_400_000;

/** The page with the tokens of all users, where an operator issues and revokes tokens. */
export function Tokens({ caller }: PageProps) {
  const polled = useAnswer<Answer<"listTokens">>(`/v1/tokens?limit=${PAGE}`, EVERY_MS);
  const [dialog, show] = useDialog(polled.reload);
  const buttons = actions<Token>(
    ({ id, user }) => `token ${id} of ${user}`,
    (token) => [{ title: "Revoke", act: () => show(<Revocation token={token} isOwn={token.user === caller.user} />) }],
  );
  return (
    <ListPage
      title="Tokens"
      noun="token"
      polled={polled}
      rowsOf={({ tokens }) => tokens}
      wordsOf={({ id, user, label, scopes, sessionId }) => [id, user, label, sessionId, ...scopes]}
      notices={dialog}
      none="No token was issued."
      buttons={
        caller.scopes.includes("issue") && (
          <Button class="primary" act={() => show(<NewToken />)}>
            Issue a token
          </Button>
        )
      }
      above={({ tokens }) => <Warning endless={tokens.filter(({ expiresAt }) => expiresAt === null).length} />}
      below={({ next }) => next !== null && <More>The {PAGE} newest tokens are shown.</More>}
    >
      {(found) => (
        <Table label="Tokens" columns={[...COLUMNS, buttons]} rows={found} idOf={({ id }) => id} sortedBy="User" />
      )}
    </ListPage>
  );
}

const COLUMNS: readonly Column<Token>[] = [
  {
    title: "User",
    by: ({ user }) => user,
    cell: ({ user }) => <Name class="cell-title" text={user} />,
    note: ({ id }) => <code>{id}</code>,
  },
  { title: "Label", by: ({ label }) => label, cell: ({ label }) => label !== null && <bdi>{label}</bdi> },
  {
    title: "Scope",
    by: ({ scopes }) => scopes.join(" "),
    cell: ({ scopes }) => scopes.map((scope) => <Badge key={scope} word={scope} />),
    note: ({ sessionId }) =>
      sessionId !== null && (
        <>
          only session <Name text={sessionId} />
        </>
      ),
  },
  {
    title: "Expires",
    by: ({ expiresAt }) => (expiresAt === null ? Number.MAX_SAFE_INTEGER : Date.parse(expiresAt)),
    cell: ({ expiresAt, expired }) => {
      if (expiresAt === null || expired) return <Badge word={expired ? "expired" : "never"} />;
      return <Ago at={expiresAt} class={Date.parse(expiresAt) - Date.now() < SOON_MS ? "warn" : ""} />;
    },
  },
  time("Last used", ({ lastUsedAt }) => lastUsedAt, "never"),
  time("Issued", ({ createdAt }) => createdAt),
];

function Warning({ endless }: { endless: number }) {
  if (endless === 0) return null;
  return (
    <p class="notice warn">
      {plural(endless, "token")} {endless === 1 ? "never expires" : "never expire"}. Whoever steals such a token can use
      it until somebody revokes it.
    </p>
  );
}

interface RevocationProps {
  token: Token;
  /** Whether the token belongs to the operator who is signed in, so that it may be the token that this page uses. */
  isOwn: boolean;
}

function Revocation({ token: { id, user, lastUsedAt }, isOwn }: RevocationProps) {
  const act = async () => await ask("DELETE", `/v1/tokens/${encodeURIComponent(id)}`);
  const effects = [
    "Programs that use it are refused from now on. Their connections end within seconds.",
    lastUsedAt === null ? "It was never used." : `It was last used ${ago(lastUsedAt)}.`,
    "There is no way back. Sessions stay.",
    ...(isOwn ? ["This token is yours. If this page uses it, you will be signed out."] : []),
  ];
  return (
    <Dialog title={`Revoke token ${id} of ${user}?`} action="Revoke the token" isDangerous {...{ effects, act }} />
  );
}

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

function NewToken() {
  const [ttl, setTtl] = useState("");
  const act = async ({ scope, ...given }: Values) => {
    const body = { user: "", ...given, scopes: [scope] };
    return <IssuedDialog token={await ask<IssuedToken>("POST", "/v1/tokens", { body })} />;
  };
  return (
    <Dialog title="Issue a token" action="Issue" act={act}>
      <Field name="user" label="User" hint="The user as whom programs with this token act." />
      <Field name="label" label="Label" hint="What the token is for. Lists show it." />
      <fieldset class="choices">
        <legend>Scope</legend>
        {SCOPES.map(([value, meaning]) => (
          <label key={value} class="choice">
            <input type="radio" name="scope" value={value} defaultChecked={value === "use"} />
            <span>
              {value} <span class="quiet">{meaning}</span>
            </span>
          </label>
        ))}
      </fieldset>
      <Choice label="Expires after" class="field" name="ttl" value={ttl} values={LIFETIMES} choose={setTtl} />
      {ttl === "never" && <p class="notice warn">Whoever steals this token can use it until somebody revokes it.</p>}
      <Field
        name="sessionId"
        label="Session"
        hint="The only session that the token is valid for. If you leave it out: all sessions of the user."
      />
    </Dialog>
  );
}

/** Shows the secret of a new token, which the console never shows again. */
function IssuedDialog({ token }: { token: IssuedToken }) {
  const [isCopied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard?.writeText(token.token);
    setCopied(true);
  };
  return (
    <Dialog title={`The token of ${token.user}`} action="Done" isNotice>
      <p>Copy the token now. The fleet keeps only a hash of it, and nobody can see it again.</p>
      <div class="secret">
        <code>{token.token}</code>
        <Button class="small" act={() => void copy()}>
          {isCopied ? "Copied" : "Copy"}
        </Button>
      </div>
      <p class="quiet" role="status">
        {isCopied && "The token is in the clipboard. "}
        {token.expiresAt === null ? "It never expires." : `It expires on ${exact(token.expiresAt)}.`}
      </p>
    </Dialog>
  );
}
