"use strict";
(function () {
  var late = document.createElement("p"), busy = false, again = false, timer = null;
  late.className = "box";
  late.hidden = true;
  late.setAttribute("role", "status");
  late.textContent = "The installer does not answer. Either the machine has handed over to its new system, which takes this port with it, or the network is gone.";
  document.body.prepend(late);
  function show() {
    timer = null;
    if (busy) { again = true; return; }
    busy = true;
    fetch("/", {cache: "no-store"}).then(function (r) { return r.text(); }).then(function (text) {
      var next = new DOMParser().parseFromString(text, "text/html");
      var old = document.getElementById("log");
      var end = !old || old.scrollTop + old.clientHeight >= old.scrollHeight - 8, top = old ? old.scrollTop : 0;
      document.title = next.title;
      document.querySelector("main").replaceWith(document.adoptNode(next.querySelector("main")));
      var log = document.getElementById("log");
      if (log) { log.scrollTop = end ? log.scrollHeight : top; }
      late.hidden = true;
    }).catch(function () {
      late.hidden = false;
    }).finally(function () {
      busy = false;
      if (again) { again = false; soon(); }
    });
  }
  function soon() { if (timer === null) { timer = setTimeout(show, 700); } }
  new EventSource("/api/v1/events").onmessage = soon;
  setInterval(function () { if (!document.hidden) { soon(); } }, 3000);
  var log = document.getElementById("log");
  if (log) { log.scrollTop = log.scrollHeight; }
})();
