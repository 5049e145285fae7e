import { useCallback, useMemo, useState } from "preact/hooks";
import { ask } from "../api/client.js";
import { Dialog } from "../parts/dialog.js";
import { usePolled, useTitle } from "../parts/hooks.js";
import { Name } from "../parts/name.js";
import { Badge, Empty, Loading, ProblemNotice } from "../parts/notice.js";
import { Search } from "../parts/search.js";
import { ago, exact, plural } from "../parts/show.js";
import { type Column, Table } from "../parts/table.js";
import type { PageProps } from "../shell.js";
import { IssuedDialog, NewToken } from "./new-token.js";
import type { IssuedToken, Token } from "./types.js";

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
