import { rows } from "./entry.js";

const NOT_THERE = {
  httpStatus: 404,
  data: "Nothing was changed, except in other servers or sessions that the same command names.",
};
const AS_BEFORE = { httpStatus: 409, data: "Nothing was changed. Sessions and their histories are as before." };
const KEPT =
  "Running turns can end, and histories are kept. The fleet did not send the prompt that was refused, so you can send it again.";

/** Something does not exist, or the user may not know of it. */
export const NOT_FOUND_ERRORS = rows(4, NOT_THERE, {
  FLEET_SESSION_NOT_FOUND: {
    title: "There is no such session for this user.",
    causes: [
      "The id is misspelled.",
      "The session was deleted, or it expired (session.ttl).",
      "It belongs to a user who did not make this one a member.",
    ],
    fixes: ["copilotfleet list --user USER"],
    httpFix: "GET /v1/sessions lists your sessions.",
  },
  FLEET_SCOPE_MISSING: {
    httpStatus: 403,
    title: "The credential does not allow this.",
    causes: [
      "The action needs a scope that the credential does not have. Every change needs use, and other users need admin.",
      "The credential is valid only for one session, and the action reaches further.",
    ],
    fixes: ["copilotfleet token list --user USER -o wide", "copilotfleet token issue --user USER --scope use"],
    httpFix: "Use a token that has the scope. GET /v1/me shows the scopes of this one.",
  },
  FLEET_NAME_NOT_FOUND: {
    title: "There is no such server, session, user or token, or the agent has no such request of this user.",
    causes: [
      "The id is misspelled. Upper and lower case differ.",
      "It was removed or revoked, or has expired.",
      "The ids of several servers begin with this text.",
      "The user has no server, session, token or placement, or is not suspended.",
      "The agent's request belongs to the turn of another member, or ended long ago. Only the user whose turn asks may answer.",
    ],
    fixes: [
      "copilotfleet ps # lists servers",
      "copilotfleet list # lists sessions",
      "copilotfleet user list",
      "copilotfleet token list",
    ],
    httpFix: "GET at the collection in the path, such as /v1/servers, lists what there is.",
  },
});

/** The call conflicts with another use, with a rule, or with the current state. */
export const CONFLICT_ERRORS = rows(5, AS_BEFORE, {
  FLEET_PURGE_UNDER_WAY: {
    title: "The data of this user is being erased.",
    data: "Everything of this user is being erased, as an operator asked. Nothing of other users is changed.",
    causes: [
      "An operator runs user purge for this user, or it was interrupted.",
      "A host was away when the purge began and is back. It erases its part when serve or gc runs there.",
    ],
    fixes: ["copilotfleet user purge USER", "copilotfleet doctor"],
    httpFix: "Ask an operator whether the purge is complete.",
  },
  FLEET_USER_SUSPENDED: {
    httpStatus: 403,
    title: "The user is suspended.",
    data: "Sessions and their histories are kept. Turns that ran when the suspension began were aborted.",
    causes: ["An operator suspended the user with user suspend. This holds for all credentials of the user."],
    fixes: ["copilotfleet user list # shows who is suspended, and why", "copilotfleet user resume USER"],
    httpFix: "Ask an operator of the fleet.",
  },
  FLEET_SESSION_EXISTS: {
    title: "The session id is taken.",
    causes: [
      "The user has a session with this id.",
      "The id is not free, for example because files of an earlier session are left. The error does not show whether another user has it.",
    ],
    httpFix: "Choose another id, or leave it out.",
    fixes: ["Choose another id, or leave it out.", "copilotfleet resume SESSION --user USER # if it is the user's own"],
  },
  FLEET_TARGET_EXISTS: {
    title: "The target already exists.",
    causes: [
      "init does not replace a configuration file that somebody may need.",
      "The target of store migrate is not empty: another fleet uses it, or an earlier copy was not removed.",
    ],
    fixes: [
      "copilotfleet config show --changed # shows the values of the configuration file",
      "copilotfleet init --force # replaces the file",
      "Choose an empty store, or clear this one and run the command again.",
    ],
  },
  FLEET_SESSION_LOST: {
    title: "The session is recorded, but its history is missing or cannot be read.",
    data: "The history of this session is missing or cannot be read. Other sessions are not affected.",
    causes: [
      "Somebody removed the session's folder behind the fleet's back, or the disk lost it.",
      "The user's agent replaced the history, or made it unreadable or very long.",
    ],
    fixes: [
      "Restore the folder from a backup.",
      "copilotfleet delete SESSION # only if there is no backup: this gives the history up",
    ],
  },
  FLEET_SESSION_BUSY: {
    retryable: true,
    title: "The session is in a turn.",
    causes: ["The call needs a session that is not in a turn. This holds for a deletion, an eviction and a move."],
    fixes: ["Try again when the turn has ended.", "copilotfleet list --state active"],
    httpFix: "Try again when the turn has ended, or end it with POST /v1/sessions/{id}/abort.",
  },
  FLEET_SESSION_CHANGED: {
    httpStatus: 412,
    title: "The session is no longer as the request expects it.",
    causes: ["The session was used or changed after the ETag in the header If-Match was read."],
    fixes: ["Read the session again, and repeat the request with the new ETag, or without If-Match."],
    httpFix: "Read the session again, and repeat the request with the new ETag, or without If-Match.",
  },
  FLEET_SESSION_AMBIGUOUS: {
    title: "Several sessions match.",
    causes: [
      "The ids of several sessions begin with the given text.",
      "Several users have a session with this id. The fleet has no record of these sessions. It found their folders in the homes of several servers.",
    ],
    fixes: ["copilotfleet list -q # prints whole ids", "copilotfleet delete SESSION --user USER"],
  },
  FLEET_SESSION_LOCKED: {
    retryable: true,
    title: "Somebody else holds the lease of the session.",
    causes: ["A member is in a turn.", "A program or a person took the lease with lock."],
    fixes: ["copilotfleet lock SESSION --show", 'copilotfleet lock SESSION --user USER --steal --reason "WHY"'],
    httpFix: "Try again when the other turn has ended. GET /v1/sessions/{id} shows the lease.",
  },
  FLEET_REQUEST_CLOSED: {
    title: "The agent no longer waits for this answer.",
    data: "The answer that came first counts. Nothing else was changed.",
    causes: [
      "The request was answered before, by the same user in another window, or by the same call.",
      "Nobody answered within session.answerTimeout, or the fleet drains.",
      "The turn has ended, for example because it was aborted.",
    ],
    fixes: [
      "GET /v1/sessions/{id}/requests lists the requests that wait.",
      "Set session.answerTimeout in the configuration to give users more time.",
    ],
  },
  FLEET_LEASE_LOST: {
    retryable: true,
    title: "The lease has ended.",
    data: "The history up to the last finished step is kept. A turn that ran under this lease may be cut.",
    causes: [
      "It expired before it was renewed.",
      "Somebody stole or released it.",
      "The token does not belong to the lease.",
    ],
    fixes: ["copilotfleet lock SESSION --show", "copilotfleet lock SESSION --user USER"],
  },
  FLEET_SESSION_MOVED: {
    retryable: true,
    title: "The session is on another host now.",
    data: "The history moved with the session, and nothing is lost.",
    causes: ["Its host was gone during the call."],
    fixes: ["Try again: the front door relays you to the host that has it.", "copilotfleet top --once"],
  },
  FLEET_METHOD_DENIED: {
    httpStatus: 403,
    title: "The front door or the HTTP API does not allow this request.",
    causes: [
      "The method or a parameter concerns the server as a whole, another user, or the machine.",
      "session.host or session.approve does not allow it.",
      "The client is a member, and only the owner may do this.",
      "The HTTP request comes from a page of a site that is not in http.origins, or names a host that is neither an address, nor a name in the certificate, nor in http.origins.",
    ],
    fixes: [
      "See the tables in docs/front-door.md, Methods.",
      'An operator may set "session": {"host": "owner"}.',
      "Add the origin, such as https://app.example, to http.origins.",
    ],
  },
  FLEET_METHOD_UNKNOWN: {
    httpStatus: 404,
    title: "The front door or the HTTP API does not know this method or path.",
    causes: [
      "The client's SDK is newer than this version of copilotfleet.",
      "The path or the method of an HTTP request is misspelled.",
    ],
    fixes: [
      "GET /openapi.json at the HTTP API lists its paths and methods.",
      "npm install --global copilotfleet@latest # if an SDK at the front door is newer than this version",
    ],
    httpFix: "GET /openapi.json lists all routes.",
  },
  FLEET_TOKEN_REFUSED: {
    httpStatus: 401,
    title: "The token is not valid here.",
    causes: [
      "It expired or was revoked.",
      "It belongs to another fleet.",
      "It was not copied completely.",
      "It is a JSON Web Token or a GitHub token, and identity does not admit it. The log of serve has the reason.",
    ],
    fixes: [
      "copilotfleet token list --user USER",
      "copilotfleet token issue --user USER --ttl 30d",
      "copilotfleet doctor # checks whether the issuers' keys can be had",
    ],
  },
  FLEET_POOL_DRAINING: {
    httpStatus: 503,
    retryable: true,
    title: "The server, the pool or the front door takes no new turns.",
    data: KEPT,
    causes: [
      "Somebody ran copilotfleet drain, or stops or restarts the server.",
      "serve is being stopped or replaced, or replaces the server. It lets running turns end.",
    ],
    fixes: ["Try again in a moment.", "copilotfleet drain --undo", "copilotfleet doctor # shows whether serve runs"],
  },
  FLEET_ADDRESS_TAKEN: {
    httpStatus: 500,
    title: "Another process listens on the configured address.",
    causes: ["Another serve or another program uses the port."],
    fixes: [
      "ss -ltnp 'sport = :PORT' # shows which program has it",
      "copilotfleet doctor # shows whether serve already runs",
      "COPILOTFLEET_SERVE_LISTEN=127.0.0.1:0 copilotfleet serve # opens the front door at a free port",
      "COPILOTFLEET_SERVE_HTTP=127.0.0.1:0 copilotfleet serve # opens the HTTP API at a free port",
    ],
  },
  FLEET_SERVER_CONFLICT: {
    title: "The server is not in the state that the call needs.",
    causes: [
      "It already runs with another token source or in another folder than requested.",
      "Another command started, stopped or took over the server at the same time.",
      "store migrate found other hosts, or servers that were being started or stopped.",
    ],
    fixes: ["copilotfleet ps", "copilotfleet stop SERVER"],
  },
  FLEET_SUPERVISOR_RUNNING: {
    title: "Another process supervises this host, or another host of the fleet has its name.",
    data: "Nothing was changed. The other serve continues its work.",
    causes: [
      "copilotfleet serve is already running on this host, for this state folder.",
      "Two machines have the same host name, or one state folder was copied to another machine.",
    ],
    fixes: [
      "copilotfleet doctor # names its process",
      "kill -TERM PID # ends it, but first waits for turns and stops its servers",
      "copilotfleet top --once # shows the hosts",
      "export COPILOTFLEET_HOST_NAME=NAME # another name on each host",
    ],
  },
});
