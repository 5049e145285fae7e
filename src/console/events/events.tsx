import { useState } from "preact/hooks";
import { ChooseUser } from "../parts/choose-user.js";
import { useTitle } from "../parts/hooks.js";
import { Empty, Loading, ProblemNotice } from "../parts/notice.js";
import { plural } from "../parts/show.js";
import type { PageProps } from "../shell.js";
import { EventTable } from "./event-table.js";
import { MOST } from "./feed.js";
import { EVENT_TYPES } from "./types.js";
import { useFeed } from "./use-feed.js";

/**
 * The page that shows events live. Callers see their own events. An operator sees those of all users, or of the user in
 * the address.
 */
export function Events({ caller, id }: PageProps) {
  const isAdmin = caller.scopes.includes("admin");
  const user = isAdmin ? id : "";
  const [type, setType] = useState("");
  const title = !isAdmin ? "Events" : user === "" ? "Events of all users" : `Events of ${user}`;
  useTitle(title);
  return (
    <div class="page wide">
      <div class="page-head">
        <h1 dir="auto">{title}</h1>
        {isAdmin && <ChooseUser page="events" user={user} />}
        <label class="inline">
          <span>Type</span>
          <select value={type} onChange={({ currentTarget }) => setType(currentTarget.value)}>
            <option value="">all</option>
            {EVENT_TYPES.map((each) => (
              <option key={each}>{each}</option>
            ))}
          </select>
        </label>
      </div>
      <Feed key={`${type} of ${user}`} user={user} type={type} linksUsers={isAdmin} />
    </div>
  );
}

function Feed({ user, type, linksUsers }: { user: string; type: string; linksUsers: boolean }) {
  const query = (name: string, value: string) => (value === "" ? "" : `&${name}=${encodeURIComponent(value)}`);
  const feed = useFeed(query("user", user) + query("type", type));
  const { shown, waiting, older, problem, isPaused, pause, resume, loadOlder } = feed;
  return (
    <>
      <ProblemNotice problem={problem} />
      {shown === undefined && problem === undefined && <Loading />}
      {shown !== undefined && (
        <>
          <div class="section-head">
            <p class="quiet" role="status">
              {isPaused ? "Paused." : "New events appear at the top."}
            </p>
            {isPaused ? (
              <button type="button" class="button small" onClick={resume}>
                Resume{waiting.length > 0 && ` and show ${plural(waiting.length, "new event")}`}
              </button>
            ) : (
              <button type="button" class="button small" onClick={pause}>
                Pause
              </button>
            )}
          </div>
          {shown.length === 0 ? (
            <Empty title="There are no events of the last 24 hours." />
          ) : (
            <EventTable events={shown} linksUsers={linksUsers} />
          )}
          {older !== null && (
            <p class="more">
              <button type="button" class="button" onClick={() => void loadOlder()}>
                Show older events
              </button>
            </p>
          )}
          {shown.length >= MOST && (
            <p class="more">
              <span class="quiet">The {MOST} newest events are shown.</span>
            </p>
          )}
        </>
      )}
    </>
  );
}
