import { useCallback, useMemo, useState } from "preact/hooks";
import { ask } from "../api/client.js";
import type { Scope } from "../api/types.js";
import { Dialog, Field } from "../parts/dialog.js";
import { ago, exact, plural, usePolled, useTitle } from "../parts/hooks.js";
import { Badge, Empty, Loading, Name, ProblemNotice } from "../parts/notice.js";
import { type Column, Search, Table } from "../parts/table.js";
import type { PageProps } from "../shell.js";
import type { IssuedToken, Token } from "./operations.js";

const EVERY_MS = 5_000;
const PAGE = 200;
const DAY_MS = 86_400_000;
/** A token that expires sooner than this is shown as a warning. In milliseconds. */
const SOON_MS = 7 * DAY_MS;

interface TokenPage {
  tokens: readonly Token[];
  next: string | null;
}

/** The page with the tokens of all users, where an operator issues and revokes tokens. */
export function Tokens({ caller }: PageProps) {
  const [search, setSearch] = useState("");
  const [isNew, setNew] = useState(false);
  const [issued, setIssued] = useState<IssuedToken | null>(null);
  const [revoked, setRevoked] = useState<Token | null>(null);
  useTitle("Tokens");
  const load = useCallback(
    async (signal: AbortSignal) => await ask<TokenPage>("GET", `/v1/tokens?limit=${PAGE}`, { signal }),
    [],
  );
  const { value, problem, reload } = usePolled(load, EVERY_MS);
  const found = useMemo(() => matching(value?.tokens ?? [], search), [value, search]);
  const closeIssued = useCallback(() => setIssued(null), []);
  const take = (token: IssuedToken) => {
    setIssued(token);
    void reload();
  };
  const columns = [
    ...COLUMNS,
    {
      title: "Actions",
      cell: (token: Token) => (
        <span class="actions">
          <button
            type="button"
            class="button small"
            onClick={() => setRevoked(token)}
            aria-label={`Revoke token ${token.id} of ${token.user}`}
          >
            Revoke
          </button>
        </span>
      ),
    },
  ];
  return (
    <div class="page wide">
      <div class="page-head">
        <h1>Tokens</h1>
        <Search label="Search the tokens" value={search} onValue={setSearch} />
        {caller.scopes.includes("issue") && (
          <button type="button" class="button primary" onClick={() => setNew(true)}>
            Issue a token
          </button>
        )}
      </div>
      <ProblemNotice problem={problem} />
      {value === undefined && problem === undefined && <Loading />}
      {value !== undefined && <Warnings tokens={value.tokens} />}
      {value !== undefined && found.length === 0 && (
        <Empty title={search === "" ? "No token was issued." : "No token matches."} />
      )}
      {found.length > 0 && (
        <Table label="Tokens" columns={columns} rows={found} idOf={({ id }) => id} sortedBy="User" />
      )}
      {value?.next != null && (
        <p class="more">
          <span class="quiet">The {PAGE} newest tokens are shown.</span>
        </p>
      )}
      {isNew && <NewToken close={() => setNew(false)} issued={take} />}
      {issued !== null && <IssuedDialog token={issued} close={closeIssued} />}
      {revoked !== null && (
        <Revocation token={revoked} isOwn={revoked.user === caller.user} close={() => setRevoked(null)} done={reload} />
      )}
    </div>
  );
}

const COLUMNS: readonly Column<Token>[] = [
  {
    title: "User",
    by: ({ user }) => user,
    cell: ({ user, id }) => (
      <>
        <Name class="cell-title" text={user} />
        <span class="cell-note">
          <code>{id}</code>
        </span>
      </>
    ),
  },
  { title: "Label", by: ({ label }) => label, cell: ({ label }) => label !== null && <bdi>{label}</bdi> },
  {
    title: "Scope",
    by: ({ scopes }) => scopes.join(" "),
    cell: ({ scopes, sessionId }) => (
      <>
        {scopes.map((scope) => (
          <Badge key={scope} word={scope} />
        ))}
        {sessionId !== null && (
          <span class="cell-note">
            only session <Name text={sessionId} />
          </span>
        )}
      </>
    ),
  },
  {
    title: "Expires",
    by: ({ expiresAt }) => (expiresAt === null ? Number.MAX_SAFE_INTEGER : Date.parse(expiresAt)),
    cell: (token) => <Expiry token={token} />,
  },
  {
    title: "Last used",
    by: ({ lastUsedAt }) => (lastUsedAt === null ? null : -Date.parse(lastUsedAt)),
    cell: ({ lastUsedAt }) => <When time={lastUsedAt} />,
  },
  {
    title: "Issued",
    by: ({ createdAt }) => -Date.parse(createdAt),
    cell: ({ createdAt }) => <When time={createdAt} />,
  },
];

function When({ time }: { time: string | null }) {
  if (time === null) return <span class="quiet">never</span>;
  return (
    <time dateTime={time} title={exact(time)}>
      {ago(time)}
    </time>
  );
}

function Expiry({ token: { expiresAt, expired } }: { token: Token }) {
  if (expiresAt === null) return <Badge word="never" />;
  if (expired) return <Badge word="expired" />;
  const isSoon = Date.parse(expiresAt) - Date.now() < SOON_MS;
  return (
    <time dateTime={expiresAt} title={exact(expiresAt)} class={isSoon ? "warn" : ""}>
      {ago(expiresAt)}
    </time>
  );
}

function Warnings({ tokens }: { tokens: readonly Token[] }) {
  const endless = tokens.filter(({ expiresAt }) => expiresAt === null).length;
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
  close(): void;
  done(): Promise<void>;
}

function Revocation({ token: { id, user, lastUsedAt }, isOwn, close, done }: RevocationProps) {
  const act = async () => {
    await ask("DELETE", `/v1/tokens/${encodeURIComponent(id)}`);
    await done();
  };
  return (
    <Dialog title={`Revoke token ${id} of ${user}?`} action="Revoke the token" isDangerous act={act} close={close}>
      <ul class="effects">
        <li>Programs that use it are refused from now on. Their connections end within seconds.</li>
        <li>{lastUsedAt === null ? "It was never used." : `It was last used ${ago(lastUsedAt)}.`}</li>
        <li>There is no way back. Sessions stay.</li>
        {isOwn && <li>This token is yours. If this page uses it, you will be signed out.</li>}
      </ul>
    </Dialog>
  );
}

function matching(tokens: readonly Token[], search: string): readonly Token[] {
  const wanted = search.trim().toLowerCase();
  return tokens.filter(({ id, user, label, scopes, sessionId }) =>
    [id, user, label, sessionId, ...scopes].join(" ").toLowerCase().includes(wanted),
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

function NewToken({ close, issued }: { close(): void; issued(token: IssuedToken): void }) {
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
function IssuedDialog({ token, close }: { token: IssuedToken; close(): void }) {
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
