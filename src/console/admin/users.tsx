import { useCallback, useMemo, useState } from "preact/hooks";
import { ask } from "../api/client.js";
import { type Problem, problemFrom } from "../api/problem.js";
import { usePolled, useTitle } from "../parts/hooks.js";
import { Name } from "../parts/name.js";
import { Badge, Empty, Loading, ProblemNotice } from "../parts/notice.js";
import { Search } from "../parts/search.js";
import { ago } from "../parts/show.js";
import { type Column, Table } from "../parts/table.js";
import type { PageProps } from "../shell.js";
import { SetLimits } from "../usage/limits-dialogs.js";
import { limitsPath, type UserLimits } from "../usage/types.js";
import { Operations } from "./operations.js";
import { ServerAction } from "./server-action.js";
import type { Receipt, Server, Servers, User } from "./types.js";
import { UserAction, type UserVerb } from "./user-action.js";

const EVERY_MS = 5_000;

/** A user with their own server. If several hosts have one, prefers one that runs. */
interface Entry extends User {
  server: Server | undefined;
}

type Chosen = { verb: UserVerb; entry: Entry } | { stop: Server } | { limits: UserLimits };

/** The users who have a session, a server or a token, with the actions of an operator. */
export function Users({ caller }: PageProps) {
  const [search, setSearch] = useState("");
  const [chosen, setChosen] = useState<Chosen | null>(null);
  const [receipt, setReceipt] = useState<Receipt | null>(null);
  const [failure, setFailure] = useState<Problem>();
  useTitle("Users");
  const load = useCallback(async (signal: AbortSignal) => {
    const [{ users }, { servers }] = await Promise.all([
      ask<{ users: User[] }>("GET", "/v1/users", { signal }),
      ask<Servers>("GET", "/v1/servers", { signal }),
    ]);
    return users.map((each): Entry => {
      const own = servers.filter(({ user }) => user === each.user);
      return { ...each, server: own.find(({ pid }) => pid !== null) ?? own[0] };
    });
  }, []);
  const { value, problem, reload } = usePolled(load, EVERY_MS);
  const found = useMemo(
    () => (value ?? []).filter(({ user }) => user.toLowerCase().includes(search.trim().toLowerCase())),
    [value, search],
  );
  const close = useCallback(() => setChosen(null), []);
  const setLimits = (user: string) => {
    setFailure(undefined);
    void ask<UserLimits>("GET", limitsPath(user)).then(
      (limits) => setChosen({ limits }),
      (error: unknown) => setFailure(problemFrom(error)),
    );
  };
  const done = async (purged: Receipt | null) => {
    setReceipt(purged);
    await reload();
  };
  const columns: Column<Entry>[] = [
    ...COLUMNS,
    {
      title: "Actions",
      cell: (entry) => {
        const { user, suspended, server } = entry;
        const button = (title: string, act: () => void, isDisabled = false) => (
          <button
            type="button"
            class="button small"
            disabled={isDisabled}
            aria-label={`${title} ${user}`}
            onClick={act}
          >
            {title}
          </button>
        );
        const choose = (verb: UserVerb) => () => setChosen({ verb, entry });
        return (
          <span class="actions">
            {server !== undefined && server.pid !== null
              ? button("Stop", () => setChosen({ stop: server }), server.away)
              : button("Start", choose("start"), suspended !== null)}
            {button("Limits", () => setLimits(user))}
            {suspended === null && button("Suspend", choose("suspend"))}
            {suspended !== null && button("Resume", choose("resume"))}
            {button("Purge", choose("purge"))}
          </span>
        );
      },
    },
  ];
  return (
    <div class="page wide">
      <div class="page-head">
        <h1>Users</h1>
        <Search label="Search the users" value={search} onValue={setSearch} />
      </div>
      <Operations />
      {receipt !== null && <Purged {...receipt} />}
      <ProblemNotice problem={failure ?? problem} />
      {value === undefined && problem === undefined && <Loading />}
      {value !== undefined && found.length === 0 && (
        <Empty title={search === "" ? "There are no users." : "No user matches."} />
      )}
      {found.length > 0 && (
        <Table label="Users" columns={columns} rows={found} idOf={({ user }) => user} sortedBy="User" />
      )}
      {chosen !== null && "verb" in chosen && (
        <UserAction
          verb={chosen.verb}
          user={chosen.entry}
          isOwn={chosen.entry.user === caller.user}
          close={close}
          done={done}
        />
      )}
      {chosen !== null && "stop" in chosen && <ServerAction server={chosen.stop} verb="stop" close={close} />}
      {chosen !== null && "limits" in chosen && <SetLimits limits={chosen.limits} close={close} done={reload} />}
    </div>
  );
}

const COLUMNS: readonly Column<Entry>[] = [
  { title: "User", by: ({ user }) => user, cell: ({ user }) => <Name class="cell-title" text={user} /> },
  {
    title: "State",
    by: ({ suspended, server }) => (suspended === null ? (server?.state ?? null) : "suspended"),
    cell: ({ suspended, server }) => (
      <>
        <Badge word={suspended === null ? (server?.state ?? "no server") : "suspended"} />
        {suspended !== null && (
          <span class="cell-note">
            {ago(suspended.since)} <bdi>{suspended.reason}</bdi>
          </span>
        )}
      </>
    ),
  },
  {
    title: "Sessions",
    isNumber: true,
    by: ({ sessions }) => sessions,
    cell: ({ user, sessions }) => <a href={`#/all-sessions/${encodeURIComponent(user)}`}>{sessions}</a>,
  },
  { title: "Tokens", isNumber: true, by: ({ tokens }) => tokens, cell: ({ tokens }) => tokens },
  { title: "Usage", cell: ({ user }) => <a href={`#/usage/${encodeURIComponent(user)}`}>Show</a> },
];

function Purged({ user, remains }: Receipt) {
  return (
    <div class={`notice ${remains.length === 0 ? "" : "warn"}`} role="status">
      <p>
        The data of <Name text={user} /> {remains.length === 0 ? "is erased." : "is erased, except for:"}
      </p>
      {remains.map(({ host, what, why }) => (
        <p key={`${host} ${what}`} class="quiet">
          {what}
          {host !== null && ` on ${host}`}: {why}
        </p>
      ))}
    </div>
  );
}
