import { expect, it } from "vitest";
import type { FleetEvent } from "../../src/console/api/types.js";
import { MOST, NO_FEED, resumed, withNew, withOlder } from "../../src/console/events/feed.js";

const event = (id: string, at: number) => ({ id, at: new Date(at).toISOString(), host: id, seq: 1 }) as FleetEvent;
const ids = (events: readonly FleetEvent[] | undefined) => events?.map(({ id }) => id);

it("the console shows each event once, and new events at the top even if their host's clock was set back", () => {
  const loaded = withOlder(NO_FEED, [event("b", 2_000), event("a", 1_000)], null);
  const later = withNew(loaded, [event("b", 2_000), event("c", 10), event("d", 20)], false);
  expect(ids(later.shown)).toEqual(["d", "c", "b", "a"]);
  const paused = withNew(later, [event("d", 20), event("e", 5)], true);
  expect(ids(paused.shown)).toEqual(["d", "c", "b", "a"]);
  expect(ids(paused.waiting)).toEqual(["e"]);
  expect(ids(resumed(paused).shown)).toEqual(["e", "d", "c", "b", "a"]);
});

it("the console keeps the events that arrived last, even if their host's clock was set back", () => {
  const many = Array.from({ length: MOST }, (_, at) => event(`old${at}`, 1_000_000 - at));
  const feed = withNew(withOlder(NO_FEED, many, "more"), [event("new", 1)], false);
  expect(ids(feed.shown)?.[0]).toBe("new");
  expect(feed.shown).toHaveLength(MOST);
  expect(feed.older).toBeNull();
});
